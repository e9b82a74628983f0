"""Published numbers as rows beside ours. Knows the frame's columns and the published tables, not how a table looks."""

import pandas as pd

from vqa_bench.report.frame import COLUMNS, FRAME_COLUMNS
from vqa_bench.report.published import published

KINDS = ("clevr", "mblm")
MARK, UNSURE_MARK = "†", "‡"


def with_published(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a row "published" for each published method at the end of every test set.

    They were measured on other questions than ours (CLEVR's own test or validation set), so they have no interval and
    no comparison; `remarks` is the source. A title ends in † (published), or in ‡ where the source was not read itself.

    Raises UserError where the tables are not at hand.
    """
    tables = pd.concat([published(kind) for kind in KINDS]).drop_duplicates("method")
    blocks = []
    for _, block in frame.groupby("test_set"):
        blocks += [block, _rows(tables, block.iloc[0])]
    return pd.concat(blocks, ignore_index=True) if blocks else frame


def _rows(tables: pd.DataFrame, test_set: pd.Series) -> pd.DataFrame:
    """The published methods as rows of one test set."""
    shared = {name: test_set[name] for name in ("test_set", "dataset", "questions", "images", "missing_images")}
    rows = []
    for _, method in tables.iterrows():
        mark = MARK if method["verified"] == "yes" else UNSURE_MARK
        row = shared | {"row": "published", "title": f"{method['method']} {mark}", "best_blind": False}
        row |= {f"{column}_accuracy": method[column] / 100 for column in COLUMNS}
        rows.append(row | {"remarks": method["source"]})
    return pd.DataFrame(rows, columns=list(FRAME_COLUMNS)).astype(FRAME_COLUMNS)
