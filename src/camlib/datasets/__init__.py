"""Explain sets of images, however large: what is read, the manifest, storage, and the rows of a run."""

from camlib.datasets.explaining import explain_dataset as explain_dataset
from camlib.datasets.rows import Row as Row
from camlib.datasets.run import Run as Run
from camlib.datasets.run import open_run as open_run
from camlib.datasets.shards import read_parquet as read_parquet
