"""Avro container files of one or a few records each, as alerts come: a schema that many files share is parsed once.

To parse the schema of a packet of LSST or ZTF takes as long as to decode the packet, and fastavro's own reader does it
for every file. The layout read here is the one of the Avro specification, "Object Container Files".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any, cast

import fastavro

MAGIC = b"Obj\x01"
_HEADER = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "Magic", "size": 4}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "sync", "type": {"type": "fixed", "name": "Sync", "size": 16}},
        ],
    }
)


@dataclass
class Schema:
    """Of the file read last: kept from file to file."""

    text: bytes = b""
    written: Any = None
    """As the file has it"""
    read: Any = None
    """What is decoded of that"""


def records(file: IO[bytes], schema: Schema, pruned: Callable[[Any], Any]) -> Iterator[Any]:
    """The file's records with the fields that `pruned` leaves of its schema; `schema` is the file's from now on.

    Raises what fastavro does for damaged content: `ValueError`, `EOFError`, `KeyError`, `IndexError`, `TypeError`,
    `SchemaParseException`; some of it only on the way.
    """
    header: Any = fastavro.schemaless_reader(file, _HEADER, None)
    if header["magic"] != MAGIC:
        raise ValueError("no Avro file")
    text = header["meta"]["avro.schema"]
    if text != schema.text:
        plain = json.loads(text)
        schema.written, schema.read = (fastavro.parse_schema(each) for each in (plain, pruned(plain)))
        schema.text = text
    if header["meta"].get("avro.codec", b"null") == b"null":
        return _blocks(file, header["sync"], schema)
    file.seek(0)
    packed: Iterator[Any] = iter(fastavro.reader(file, reader_schema=schema.read))
    return packed


def _blocks(file: IO[bytes], sync: bytes, schema: Schema) -> Iterator[Any]:
    """Of a file that is not packed."""
    while first := file.read(1):
        file.seek(-len(first), 1)
        count, size = (cast(int, fastavro.schemaless_reader(file, "long", None)) for _ in range(2))
        data = file.read(size)
        if len(data) < size:
            raise EOFError(f"{len(data)} bytes of a block of {size}")
        block = BytesIO(data)
        for _ in range(count):
            yield fastavro.schemaless_reader(block, schema.written, schema.read)
        if file.read(len(sync)) != sync:
            raise ValueError("a block ends where it should not")
