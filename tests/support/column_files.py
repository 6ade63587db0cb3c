"""Draws files with named columns, and reads them in plain Python: the truth that readers must meet.

A ``Drawn`` says what a reader should tell: per row the ids of each wanted column, or which rows and
columns it may complain about. Nothing of the package is used here.
"""

import csv
import io
import random
import re
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

I64_MIN, I64_MAX = -(2**63), 2**63 - 1
EDGES = (0, 1, -1, I64_MIN, I64_MAX, 2**31, 2**53 + 1)


@dataclass
class Drawn:
    """``rows``: the bags of each wanted column. ``bad``: (row from 1, column), where a column None
    stands for the whole row. ``refused``: a pattern for errors that concern no single row."""

    wanted: dict[str, str]  # {table: column}
    missing: int | None
    rows: list[list[list[int]]] = field(default_factory=list)
    bad: set[tuple[int, str | None]] = field(default_factory=set)
    refused: str | None = None

    def judge(self, got, error):
        """Assert that a reader returned all ids, or told a right place."""
        if error is None:
            assert self.refused is None, f"read, though {self.refused}"
            assert not self.bad, f"read, though {sorted(self.bad, key=str)[:3]} cannot be"
            assert got == self.rows
            return
        text = str(error)
        if self.refused is not None:
            assert re.search(self.refused, text), text
            return
        assert self.bad, f"refused, though all is well: {text}"
        row = re.search(r", row (\d+):", text)
        column = re.search(r"column '(\w+)'", text)
        assert row, text
        assert (int(row[1]), column and column[1]) in self.bad, f"{text}; {self.bad}"


# --- Parquet ------------------------------------------------------------------------------------

INTEGERS = {
    pa.int8(): (-(2**7), 2**7 - 1),
    pa.int16(): (-(2**15), 2**15 - 1),
    pa.int32(): (-(2**31), 2**31 - 1),
    pa.int64(): (I64_MIN, I64_MAX),
    pa.uint8(): (0, 2**8 - 1),
    pa.uint16(): (0, 2**16 - 1),
    pa.uint32(): (0, 2**32 - 1),
    pa.uint64(): (0, I64_MAX),
}


def _list_type(chance, inner):
    return chance.choice(
        [
            lambda: pa.list_(inner),
            lambda: pa.large_list(inner),
            lambda: pa.list_(inner, chance.randrange(1, 4)),
            lambda: pa.list_view(inner),
            lambda: pa.large_list_view(inner),
        ]
    )()


def _value(chance, kind, nulls, leaf):
    """A random value of an Arrow type, as Python data."""
    if chance.random() < nulls[0]:
        return None
    if not pa.types.is_nested(kind):
        return leaf()
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else chance.choice((0, 1, 1, 2, 5))
    return [_value(chance, kind.value_type, nulls[1:], leaf) for _ in range(size)]


def flattened(value):
    """The integers of nested lists, in order; a null in place of a list holds none."""
    if isinstance(value, list):
        return [leaf for each in value for leaf in ([None] if each is None else flattened(each))]
    return [value]


def _bag(value, depth):
    """The leaves of one row: lists that are null vanish, leaves that are null stay."""
    if depth == 0:
        return [value]
    return [] if value is None else [leaf for each in value for leaf in _bag(each, depth - 1)]


def _parquet_column(chance, num_rows):
    """(Arrow array, values, depth, whether it holds integers)."""
    fails = chance.random()
    kind = chance.choice(list(INTEGERS))
    low, high = INTEGERS[kind]
    if fails < 0.05 and kind == pa.uint64():
        high = 2**64 - 1

    def leaf():
        edges = [edge for edge in (*EDGES, low, high) if low <= edge <= high]
        return chance.choice(edges) if chance.random() < 0.2 else chance.randint(low, high)

    if 0.05 < fails < 0.09:
        kind, leaf = pa.string(), lambda: "17"
    elif 0.09 < fails < 0.12:
        kind, leaf = pa.float64(), lambda: 17.0
    integers, plain = pa.types.is_integer(kind), kind
    depth = chance.choice((0, 0, 1, 1, 1, 2, 2, 3))
    for _ in range(depth):
        kind = _list_type(chance, kind)
    some = chance.choice((0.0, 0.0, 0.02, 0.3))
    nulls = [chance.choice((0.0, 0.1, 0.5)) for _ in range(depth)] + [some]
    before = chance.randrange(3)  # rows that a slice leaves out again
    values = [_value(chance, kind, nulls, leaf) for _ in range(num_rows + before)]
    if depth == 0 and integers and chance.random() < 0.2:
        array = pa.array(values, plain).dictionary_encode()
    else:
        array = pa.array(values, kind)
    if depth == 1 and pa.types.is_fixed_size_list(kind) and integers and chance.random() < 0.5:
        tensor = pa.fixed_shape_tensor(plain, (kind.list_size,))
        array = pa.ExtensionArray.from_storage(tensor, array)
    return array.slice(before), values[before:], depth, integers


def draw_parquet(seed, path):
    """Write a Parquet file; return what it holds."""
    chance = random.Random(seed)
    num_rows = chance.choice((0, 1, 3, 20, 60))
    names = [f"c{i}" for i in range(chance.randrange(1, 4))]
    columns = {name: _parquet_column(chance, num_rows) for name in names}
    table = pa.table({name: column[0] for name, column in columns.items()})
    pq.write_table(
        table,
        path,
        row_group_size=chance.choice((1, 7, 1000)),
        data_page_size=chance.choice((16, 1 << 20)),
        compression=chance.choice(("none", "snappy", "zstd")),
        use_dictionary=chance.random() < 0.5,
        version=chance.choice(("1.0", "2.6")) if not _has_u32(columns) else "2.6",
        store_schema=chance.random() < 0.7,
    )
    chosen = chance.sample(names, chance.randrange(1, len(names) + 1))
    wanted = {f"t{i}": name for i, name in enumerate(chosen)}
    if chance.random() < 0.2:
        wanted["again"] = chosen[0]
    out = Drawn(wanted, chance.choice((None, None, -7, I64_MAX)))
    for name in chosen:
        if not columns[name][3]:
            out.refused = "ids are integers"
    assert pq.read_table(path).to_pydict() == table.to_pydict(), table.schema
    for row in range(num_rows):
        out.rows.append([])
        for name in wanted.values():
            _, values, depth, _ = columns[name]
            bag = _bag(values[row], depth)
            if (None in bag and out.missing is None) or any(
                isinstance(each, int) and each > I64_MAX for each in bag
            ):
                out.bad.add((row + 1, name))
            out.rows[-1].append([out.missing if each is None else each for each in bag])
    return out


def _has_u32(columns):
    return any("uint32" in str(column[0].type) for column in columns.values())


# --- CSV and TSV --------------------------------------------------------------------------------


def _quoted(chance, text, separator):
    if any(c in text for c in (separator, '"', "\n", "\r")) or chance.random() < 0.1:
        return '"' + text.replace('"', '""') + '"'
    return text


def _integer_text(chance, trouble):
    if chance.random() < trouble:
        return chance.choice(("", "", "x", "1.5", "9223372036854775808", "1e3", "--1", " "))
    value = chance.choice(EDGES) if chance.random() < 0.2 else chance.randint(-(10**6), 10**12)
    return chance.choice(("{}", "{}", "{}", " {}", "{} ")).format(value)


def draw_text(seed, path, separator, compress):
    """Write a CSV or TSV file; return what it holds."""
    chance = random.Random(seed)
    num_columns = chance.choice((1, 1, 2, 3, 5))
    names = [f"c{i}" for i in range(num_columns)]
    texts = {name for name in names[1:] if chance.random() < 0.3}  # columns of any text
    trouble = chance.choice((0.0, 0.0, 0.0, 0.01, 0.2))
    words = ("", "a", 'say "hi"', f"a{separator}b", "two\nlines", "\n", "é", "7", "two\r\n")
    newline = chance.choice(("\n", "\r\n"))
    header = [*names]
    if num_columns > 2 and chance.random() < 0.1:
        header[-1] = header[-2]
    lines = [separator.join(_quoted(chance, name, separator) for name in header)]
    for _ in range(chance.choice((0, 1, 4, 40, 200))):
        fields = [
            _quoted(chance, chance.choice(words), separator)
            if name in texts
            else _quoted(chance, _integer_text(chance, trouble), separator)
            for name in names
        ]
        if chance.random() < trouble / 4:
            fields = chance.choice((fields[:-1] or ["1", "2"], [*fields, "9"]))
        lines.append(separator.join(fields))
        if chance.random() < 0.02:
            lines.append("")
    text = newline.join(lines) + chance.choice(("", newline))
    if chance.random() < 0.05:
        place = chance.randrange(len(text))
        text = text[:place] + '"' + text[place:]
    if chance.random() < 0.1:
        text = "\ufeff" + text
    path.write_bytes(compress(text.encode()))
    possible = [name for name in names if name not in texts]
    chosen = chance.sample(possible, chance.randrange(1, len(possible) + 1))
    wanted = {f"t{i}": name for i, name in enumerate(chosen)}
    if chance.random() < 0.2:
        wanted["again"] = chosen[0]
    out = Drawn(wanted, chance.choice((None, None, -7, I64_MAX)))
    _read_text(text.removeprefix("\ufeff"), separator, out)
    return out


def _read_text(text, separator, out):
    """Fill in what the ``csv`` module reads."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=False)
    records = list(reader)
    names = next(record for record in records if record)
    records = records[records.index(names) + 1 :]
    for name in out.wanted.values():
        if names.count(name) != 1:
            out.refused = "there is no column|columns are called"
            return
    if _ends_in_a_quote(text, separator):
        # What follows the quote may end up in a column of ids, or in one of text.
        out.refused = "quote|holds|fields instead|is empty"
        return
    row = 0
    for record in records:
        if not record:
            if len(names) > 1:
                continue
            record = [""]
        row += 1
        out.rows.append([])
        if len(record) != len(names):
            out.bad.add((row, None))
            continue
        for name in out.wanted.values():
            field = record[names.index(name)]
            if field == "" and out.missing is not None:
                out.rows[-1].append([out.missing])
            elif re.fullmatch(r"[ \t]*-?[0-9]+[ \t]*", field) and I64_MIN <= int(field) <= I64_MAX:
                out.rows[-1].append([int(field)])
            else:
                out.bad.add((row, name))


def _ends_in_a_quote(text, separator):
    """Whether the text is over inside a quoted field: then one more line does not add a record."""
    count = len(list(csv.reader(io.StringIO(text, newline=""), delimiter=separator)))
    more = text + ("" if text.endswith(("\n", "\r")) else "\n") + "0\n"
    return len(list(csv.reader(io.StringIO(more, newline=""), delimiter=separator))) == count
