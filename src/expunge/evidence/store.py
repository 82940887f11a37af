"""Evidence as parquet: one file per model and split, written to a temporary name and renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.evidence.schema import Evidence, Row

__all__ = ["read_evidence", "write_evidence"]

SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("split", pa.string()),
        ("entity", pa.string()),
        ("variant", pa.string()),
        ("logprobs", pa.list_(pa.float32())),
        ("hits", pa.list_(pa.bool_())),
        ("greedy_ids", pa.list_(pa.int32())),
        ("vocab_mean", pa.list_(pa.float32())),
        ("vocab_std", pa.list_(pa.float32())),
        ("has_end", pa.bool_()),
        ("truncated", pa.bool_()),
        ("num_prompt_tokens", pa.int32()),
        ("text_bytes", pa.int32()),
        ("zlib_bytes", pa.int32()),
        ("vocab_size", pa.int32()),
        ("answer", pa.string()),
        ("generated", pa.string()),
        ("finish_reason", pa.string()),
        ("kl", pa.list_(pa.float32())),
        ("label", pa.bool_()),
        ("extra", pa.string()),
    ]
)
_DTYPES = {
    "logprobs": np.float32,
    "hits": np.bool_,
    "greedy_ids": np.int32,
    "vocab_mean": np.float32,
    "vocab_std": np.float32,
    "kl": np.float32,
}


def write_evidence(evidence: Evidence, path: Path) -> Path:
    """Write atomically; the meta (plain JSON values) goes into the file's own metadata."""
    path = Path(path)
    columns = {name: [getattr(row, name) for row in evidence] for name in SCHEMA.names}
    columns["extra"] = [json.dumps(dict(extra)) for extra in columns["extra"]]
    meta = json.dumps({**evidence.meta, "split": evidence.split}, sort_keys=True)
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"expunge": meta})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_evidence(path: Path) -> Evidence:
    """The evidence as it was written; its arrays are read-only."""
    table = pq.read_table(path)
    meta = json.loads(table.schema.metadata[b"expunge"])
    columns: dict[str, list] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name in _DTYPES:
            values = column.values.to_numpy(zero_copy_only=False).astype(_DTYPES[name], copy=False)
            offsets = column.offsets.to_numpy()
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            columns[name] = [
                values[start:stop] if ok else None
                for start, stop, ok in zip(offsets[:-1], offsets[1:], valid, strict=True)
            ]
        elif name == "extra":
            columns[name] = [json.loads(text) for text in column.to_pylist()]
        else:
            columns[name] = column.to_pylist()
    split = meta.pop("split")
    rows = [Row(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    return Evidence(split, rows, meta)
