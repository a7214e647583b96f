import pytest

from guard import Report
from guard.evaluation.result import WorstCase
from guard.report.findings import findings, overstatements
from guard.report.tables import tables


def only(report: Report, *defenses: str, **update: object) -> Report:
    rows = [
        row.model_copy(update=update)
        for row in report.worst_case
        if row.defense in defenses and (row.dataset, row.knowledge) == ("digits", "adaptive")
    ]
    return report.model_copy(update={"worst_case": rows})


def test_the_strongest_defense_is_named_with_its_figures(report: Report) -> None:
    assert findings(report)[0] == (
        "Strongest defense: adversarial-training keeps 61.3 % [57.4, 65.1] of 597 images under the worst of 3 attacks "
        "(digits, linf 0.2); undefended 0.0 %. Not judged, as attacks are missing: shape-bias + truncated-relu."
    )
    assert len(findings(report)) == 3  # one for each data set and threat


def test_an_undefended_model_is_said_to_be_so(report: Report) -> None:
    assert findings(only(report, "none")) == [
        "Undefended, small-cnn keeps 0.0 % [0.0, 3.8] of 597 images under the worst of 3 attacks (linf 0.2); "
        "clean 98.5 %."
    ]


def test_defenses_that_do_not_help_are_said_not_to(report: Report) -> None:
    rows = only(report, "none", "jpeg").worst_case
    better = [rows[0].model_copy(update={"robust_accuracy": 0.5, "robust_accuracy_interval": (0.4, 0.6)}), rows[1]]
    assert findings(report.model_copy(update={"worst_case": better}))[0].startswith("No defense does better than none")


def test_a_near_rival_is_named(report: Report) -> None:
    rows = only(report, "adversarial-training", "jpeg").worst_case
    rival = [rows[0], rows[1].model_copy(update={"robust_accuracy": 0.6})]
    assert "; within its interval: jpeg." in findings(report.model_copy(update={"worst_case": rival}))[0]
    assert "within" not in findings(report)[0]


def test_what_is_incomplete_is_never_the_strongest(report: Report) -> None:
    found = findings(only(report, "shape-bias + truncated-relu"))
    assert found[0].startswith("Nothing could be judged under linf 0.2.")


def test_a_suspect_headline_says_why(report: Report) -> None:
    found = findings(only(report, "adversarial-training", status="SUSPECT", reason="it looks odd"))
    assert found[0].endswith("Suspect: it looks odd.")


def test_without_an_adaptive_attacker_the_sentence_says_so(report: Report) -> None:
    rows = [row for row in report.worst_case if row.knowledge == "oblivious"]
    assert "(linf 0.2, oblivious attacks only)" in findings(report.model_copy(update={"worst_case": rows}))[0]


def test_overstatement_is_oblivious_less_adaptive(report: Report) -> None:
    (found,) = overstatements(report)  # the other defense's adaptive worst case is incomplete
    assert found.defense == "jpeg"
    assert found.difference == pytest.approx((402 - 22) / 597)
    assert dict(found.attacks) == pytest.approx({"fgsm": 252 / 597, "pgd": 427 / 597, "apgd": 433 / 597})


def test_a_worst_case_over_goals_and_seeds_stands_in_every_table_and_says_so(report: Report) -> None:
    cell = report.cells[0]
    cells = [
        cell.model_copy(update={"goal": goal, "seed": seed})
        for goal in ("untargeted", "targeted: next")
        for seed in (0, 1)
    ]
    row: WorstCase = report.worst_case[0].model_copy(update={"goal": "untargeted and targeted: next"})
    found = tables(report.model_copy(update={"cells": cells, "worst_case": [row]}))
    assert len(found) == 4
    for table in found:
        assert table.lines[0].worst == row
        spans = "The worst case spans the goals untargeted and targeted: next and the seeds 0 and 1."
        assert table.notes[-1] == spans


def test_transfers_from_two_sources_are_two_tables(report: Report) -> None:
    cells = [report.cells[0].model_copy(update={"knowledge": "transfer", "source": name}) for name in ("a", "b")]
    found = tables(report.model_copy(update={"cells": cells}))
    assert [table.attacker for table in found] == ["transfer from a", "transfer from b"]


def test_of_several_sources_the_one_that_breaks_most_counts(report: Report) -> None:
    row = report.worst_case[0]
    shares = {"a": 0.4, "b": 0.2}
    rows = [
        row.model_copy(update={"knowledge": "transfer", "source": source, "robust_accuracy": share, "status": "VALID"})
        for source, share in shares.items()
    ]
    (text,) = findings(report.model_copy(update={"worst_case": rows}))
    assert "20.0 %" in text
    assert "40.0 %" not in text
