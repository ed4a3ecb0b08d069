"""A checkpoint in pieces: a folder in which every process has written its own share of the sharded tensors.

torch.distributed.checkpoint plans and moves the shares, and deals them out anew to whatever reads them: as many
processes as before, more, fewer, or one. Its index, a pickle, is not written: `meta.pt` holds the same in plain values,
beside all that is not sharded, so that nothing is ever read but by `weights_only`.
"""

import dataclasses
import os
import shutil
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from triptych import disk

META = "meta.pt"
Place = Callable[[torch.Size, torch.dtype], Tensor]


def split(checkpoint: dict[str, Any]) -> tuple[dict[str, DTensor], dict[str, Any]]:
    """Its sharded tensors, each named by its way in; and all the rest, with None where they were."""
    sharded: dict[str, DTensor] = {}

    def rest(node: Any, way: tuple[Any, ...]) -> Any:
        if isinstance(node, DTensor):
            sharded["/".join(map(str, way))] = node
            return None
        if isinstance(node, dict):
            return {key: rest(value, (*way, key)) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(rest(value, (*way, i)) for i, value in enumerate(node))
        return node

    return sharded, rest(checkpoint, ())


def write(sharded: dict[str, DTensor], rest: dict[str, Any], path: Path, group: dist.ProcessGroup | None) -> None:
    """On every process of the group, with its own share; the folder is there when all of them are on the disk.

    An OSError, on every process, if one of them cannot write.
    """
    name = [str(disk.temporary_of(path))]
    dist.broadcast_object_list(name, src=0, group=group)
    temporary = Path(name[0])
    try:
        save(sharded, storage_writer=Writer(temporary, rest, path), process_group=group)
    except CheckpointException as error:
        raise _told(error) from None
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)


class Writer(FileSystemWriter):
    """Ends with `meta.pt` instead of a pickle, and with the rename that makes the folder a checkpoint."""

    def __init__(self, folder: Path, rest: dict[str, Any], path: Path) -> None:
        super().__init__(folder)
        self.folder, self.rest, self.destination = folder, rest, path

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Files of another save have other names: who reads while it is replaced misses one, and never mixes two."""
        step, save = self.rest.get("global_step", 0), uuid.uuid4().hex[:8]
        return [
            dataclasses.replace(plan, storage_data=_StoragePrefix(f"step={step}-{save}-process={i}-"))
            for i, plan in enumerate(plans)
        ]

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """On the first process, when all have written."""
        stored: dict[tuple[str, tuple[int, ...]], _StorageInfo] = {}
        stored |= {(r.index.fqn, tuple(r.index.offset or ())): r.storage_data for share in results for r in share}
        index = {
            name: {
                "size": list(about.size),
                "dtype": str(about.properties.dtype).removeprefix("torch."),
                "pieces": [_piece(chunk, stored[name, tuple(chunk.offsets)]) for chunk in about.chunks],
            }
            for name, about in metadata.state_dict_metadata.items()
            if isinstance(about, TensorStorageMetadata)
        }
        missing = [
            p["file"] for about in index.values() for p in about["pieces"] if not (self.folder / p["file"]).exists()
        ]
        if missing:
            raise OSError(
                f"{missing[0]} is not in the first process's {self.folder.parent}: checkpoints in pieces need a folder "
                "that all machines share, others callback.checkpoint.sharded=false"
            )
        with (self.folder / META).open("wb") as file:
            torch.save({"checkpoint": self.rest, "index": index}, file)
            file.flush()
            os.fsync(file.fileno())
        disk.sync(self.folder)
        disk.put(self.folder, self.destination)


def _piece(chunk: ChunkStorageMetadata, place: _StorageInfo) -> dict[str, Any]:
    return {
        "offsets": list(chunk.offsets),
        "sizes": list(chunk.sizes),
        "file": place.relative_path,
        "begin": place.offset,
        "length": place.length,
    }


def about(path: Path) -> dict[str, Any]:
    """The content of `meta.pt`: `checkpoint`, with None for each tensor that is in pieces, and `index`.

    A ValueError if a file is missing, too short, or lies elsewhere; the tensors themselves are not read.
    """
    try:
        meta = torch.load(path / META, map_location="cpu", weights_only=True)
        pieces = [piece for tensor in meta["index"].values() for piece in tensor["pieces"]]
        assert all(isinstance(getattr(torch, tensor["dtype"]), torch.dtype) for tensor in meta["index"].values())
        ends = {str(p["file"]): 0 for p in pieces}
        for p in pieces:
            ends[p["file"]] = max(ends[p["file"]], p["begin"] + p["length"])
    except Exception as error:  # whatever torch.load makes of what is no such file
        raise ValueError(f"The folder {path} is not a checkpoint, or only a part of one: see its {META}.") from error
    for name, end in ends.items():
        file = path / name
        if Path(name).name != name or file.is_symlink():
            raise ValueError(f"The checkpoint {path} refers to {name}, which is not a file of its own: not loaded.")
        if not file.is_file() or file.stat().st_size < end:
            raise ValueError(f"The folder {path} is only a part of a checkpoint: {name} is missing or cut off.")
    return meta


def read(path: Path, place: Place | None = None) -> dict[str, Any]:
    """The checkpoint, as a file would hold it.

    Args:
        place: makes the tensors, of a size and a dtype, into which it is read: those of several processes, each of
            which reads its share. Without, every tensor is read whole, and no other process takes part.
    """
    meta = about(path)
    make = place or (lambda size, dtype: torch.empty(size, dtype=dtype))
    tensors = {
        name: make(torch.Size(tensor["size"]), getattr(torch, tensor["dtype"]))
        for name, tensor in meta["index"].items()
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process
            load(tensors, storage_reader=Reader(path, meta["index"]), no_dist=place is None)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise ValueError(f"The checkpoint {path} cannot be read ({str(cause).splitlines()[0]}).") from None
    checkpoint = meta["checkpoint"]
    _fill(checkpoint, (), tensors)
    return checkpoint


def _fill(node: Any, way: tuple[str, ...], tensors: dict[str, Tensor]) -> None:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        here = (*way, str(key))
        if value is None and "/".join(here) in tensors:
            node[key] = tensors["/".join(here)]
        elif isinstance(value, (dict, list)):
            _fill(value, here, tensors)


class Reader(FileSystemReader):
    """Has its index from `meta.pt`."""

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        super().__init__(path)
        self.index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors, places = {}, {}
        for name, tensor in self.index.items():
            chunks = [ChunkStorageMetadata(torch.Size(p["offsets"]), torch.Size(p["sizes"])) for p in tensor["pieces"]]
            properties = TensorProperties(getattr(torch, tensor["dtype"]))
            tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor["size"]), chunks)
            for p in tensor["pieces"]:
                places[MetadataIndex(name, p["offsets"])] = _StorageInfo(p["file"], p["begin"], p["length"])
        return Metadata(tensors, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def _told(error: CheckpointException) -> OSError:
    """What went wrong with a save, as the disk's own error if it was the disk."""
    rank, (cause, _) = next(iter(error.failures.items()))
    cause = cause if isinstance(cause, OSError) else cause.__context__ or cause
    if isinstance(cause, OSError):
        return cause
    return OSError(f"process {rank}: {str(cause).splitlines()[0]}")
