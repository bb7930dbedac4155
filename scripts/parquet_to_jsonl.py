#!/usr/bin/env python3
"""Parquet tables of texts, as most data sets are published, to the JSON lines that `tokenize` and `train` read.

    scripts/parquet_to_jsonl.py TABLE.parquet... [--text-key text] | zstd > texts.jsonl.zst
    train_gpt train --data texts.jsonl.zst

Needs pyarrow (Debian: python3-pyarrow; or pip install pyarrow). One row becomes one document, {"text": ...}; rows without text
are left out.
"""
import argparse
import json
import sys

try:
    import pyarrow.parquet
except ImportError:
    sys.exit("parquet_to_jsonl: needs pyarrow: pip install pyarrow")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", metavar="TABLE.parquet")
    parser.add_argument("--text-key", default="text", help="the column with the text (text)")
    arguments = parser.parse_args()
    for path in arguments.tables:
        try:
            table = pyarrow.parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            sys.exit(f"parquet_to_jsonl: {path}: {error}")
        if arguments.text_key not in table.schema_arrow.names:
            sys.exit(f"parquet_to_jsonl: {path}: no column {arguments.text_key}; --text-key takes one of "
                     + ", ".join(table.schema_arrow.names))
        for batch in table.iter_batches(columns=[arguments.text_key]):
            for text in batch.column(0).to_pylist():
                if text:
                    print(json.dumps({"text": text}))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.exit(1)
