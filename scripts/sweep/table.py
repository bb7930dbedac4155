"""A table of training runs from any CSV: the loss and two of N, D and C, under the names that people give them."""
import csv
import io
import math
import re
import sys

import numpy as np

from . import SweepError

ALIASES = {  # lower case, letters and digits only
    "N": "n params parameters modelsize modelparams numparams nparams numparameters totalparams paramstotal size "
         "paramsnominal parametercount paramcount",
    "D": "d tokens trainingtokens traintokens numtokens ntokens trainedtokens datasize totaltokens tokencount",
    "C": "c flops flop trainingflop trainingflops trainflops totalflops compute computeflops budget computebudget flopbudget",
    "loss": "loss l valloss validationloss finalloss testloss evalloss bpb valbpb",
    "N_body": "nonembeddingparams paramsnonembedding nnonembedding paramswithoutembeddings nbody paramsbody",
    "N_head": "paramswithhead paramsbodyhead nhead",
    "C_counted": "flopscounted countedflops",
    "seed": "seed",
    "name": "name run model id",
}
NAMES = {alias: key for key, text in ALIASES.items() for alias in text.split()}
NO_LOSS = {"", "nan", "inf", "infinity", "none", "null", "na", "n/a", "-", "diverged", "failed"}  # runs without a result
SUFFIXES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


class Table:
    """Columns of equal length. C is the table's own where it has one, else 6 N D (Kaplan et al. 2020, sec. 2.1)."""

    def __init__(self, N, D, loss, C=None, extra=None):
        self.N, self.D, self.loss = (np.asarray(x, dtype=float) for x in (N, D, loss))
        self.C = 6 * self.N * self.D if C is None else np.asarray(C, dtype=float)
        self.extra = extra or {}  # further columns by key: N_body, N_head, C_counted, seed, name

    def __len__(self):
        return len(self.N)

    def keep(self, rows):
        extra = {key: [value for value, kept in zip(values, rows) if kept] for key, values in self.extra.items()}
        return Table(self.N[rows], self.D[rows], self.loss[rows], self.C[rows], extra)

    def drop_highest(self, count):
        """Without the `count` runs of highest loss, as Besiroglu et al. 2024 drop five of Hoffmann et al.'s."""
        if not count:
            return self
        if count >= len(self):
            raise SweepError(f"--drop-highest {count} leaves none of {len(self)} runs", 2)
        return self.keep(self.loss < np.sort(self.loss)[-count])

    def with_sizes(self, key):
        """The same runs with another count of N and C = 6 N D."""
        return Table(np.array(self.extra[key], dtype=float), self.D, self.loss, None, self.extra)


def number(text, decimal_comma=False):
    """A count such as 124M or 2.5e9, or a loss; not a number where the text is none."""
    if decimal_comma and "." not in text:
        text = text.replace(",", ".")
    match = re.fullmatch(r"\s*([-+0-9.eE]+)\s*([kKmMbBgGtT]?)\s*", text)
    try:
        return float(match[1]) * SUFFIXES[match[2].lower()] if match else math.nan
    except ValueError:
        return math.nan


def read_table(path, columns=()):
    """Reads a CSV with a header. `columns`: "KEY=HEADER" for headers that are not known. Numbers may have a decimal comma
    where semicolons or tabs separate them. Runs without a loss are left out, which a line on stderr says. Raises SweepError;
    a row is counted as editors count lines, the header's being 1."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}")
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    try:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise SweepError(f"{path}: not a CSV table: {error}")
    if len(rows) < 2:
        raise SweepError(f"{path}: no runs: a header and at least one row are needed")
    header = rows[0][1]
    places = find_columns(path, header, columns)
    values, without_loss = {key: [] for key in places}, []
    for line, row in rows[1:]:
        cells = {key: row[place].strip() if place < len(row) else "" for key, place in places.items()}
        if cells["loss"].lstrip("+-").lower() in NO_LOSS:
            without_loss.append(line)
            continue
        for key, cell in cells.items():
            if key in ("name", "seed"):
                values[key].append(cell)
                continue
            value = number(cell, delimiter != ",")
            if not (value > 0 and math.isfinite(value)):
                raise SweepError(f"{path}: row {line}, column {header[places[key]]}: '{cell}' is not a positive number")
            values[key].append(value)
    if not values["loss"]:
        raise SweepError(f"{path}: no run has a loss")
    if without_loss:
        some = ", ".join(map(str, without_loss[:10])) + (", ..." if len(without_loss) > 10 else "")
        print(f"sweep: {path}: {len(without_loss)} of {len(rows) - 1} runs have no loss and are left out: row {some}",
              file=sys.stderr)
    arrays = {key: np.array(column) for key, column in values.items() if key not in ("name", "seed")}
    if "D" not in arrays:
        arrays["D"] = arrays["C"] / (6 * arrays["N"])
    if "N" not in arrays:
        arrays["N"] = arrays["C"] / (6 * arrays["D"])
    extra = {key: values[key] for key in ("N_body", "N_head", "C_counted", "seed", "name") if key in values}
    return Table(arrays["N"], arrays["D"], arrays["loss"], arrays.get("C"), extra)


def find_columns(path, header, columns):
    places = {}
    for place, name in enumerate(header):
        key = NAMES.get(re.sub(r"[^a-z0-9]", "", name.lower()))
        if key and key not in places:
            places[key] = place
    for column in columns:
        key, _, name = column.partition("=")
        if key not in ALIASES or name not in header:
            raise SweepError(f"--column {column}: wanted one of {', '.join(ALIASES)}, then = and one of the table's "
                             f"columns, which are {', '.join(header)}", 2)
        places[key] = header.index(name)
    have = [key for key in ("N", "D", "C") if key in places]
    if "loss" not in places or len(have) < 2:
        raise SweepError(f"{path}: wanted columns for the loss and two of N (params), D (tokens), C (flops); it has "
                         f"{', '.join(header)}; say which is which by --column N=HEADER")
    return places
