"""What ships with guard, through the same door as anybody else's plugin."""
