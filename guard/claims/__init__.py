"""Claims: a sentence that people believe, what it expects to be measured, and what comes out."""
