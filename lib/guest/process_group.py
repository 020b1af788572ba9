"""A `dist.ProcessGroup` whose collectives are the verbs of a `Group`, written in place.

Python and C++ call the methods below by the names that PyTorch gave them. Each brings this device's tensors to the
meeting of a verb and returns a `Work`, which writes what comes into the tensors that the program passed.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lib.devices import collectives as c
from lib.devices import rooted
from lib.guest import sparse
from lib.guest.bare import flat
from lib.guest.meeting import Meeting
from lib.guest.operations import reduction
from lib.guest.uneven import KnownAllGather, KnownGather, expecting
from lib.guest.work import Work

# Made once: that the same object is the same call is seen at a glance.
AllReduce, AllGather, ReduceScatter = map(cache, (c.AllReduce, KnownAllGather, c.ReduceScatter))
Broadcast, Reduce, Barrier = map(cache, (rooted.Broadcast, rooted.Reduce, rooted.Barrier))


class GuestGroup(Meeting):
    """The process group of one device. `group`: where the verbs are."""

    # ---- all devices alike ----

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:
        r = reduction(opts, self.size())
        write = lambda x: lambda got: self._copy(x, r.scaled(got))  # noqa: E731
        works = []
        for x in tensors:
            if x.is_sparse:
                works += sparse.all_reduce(self, x, r, opts)
            else:
                works.append(self._meet(AllReduce(r.name), r.before(self._dense(x)), write(x), [x], opts))
        return self._several(works, tensors)

    allreduce_coalesced = allreduce

    def all_gather_single(self, output: Tensor, x: Tensor, opts: Any = None) -> Work:
        flat_x = expecting(flat(x), [x] * self.size())
        return self._meet(AllGather(0), flat_x, lambda got: self._copy(output, got), [output], opts)

    _allgather_base = all_gather_single

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Work:
        (outs,), (x,) = outputs, inputs
        return self._meet(AllGather(0), expecting(flat(x), outs), lambda got: self._deal(outs, got), outs, opts)

    def allgather_coalesced(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> Work:
        outs_of_each = zip(*outputs, strict=True)  # the program gives a list for each device, of all that comes from it
        works = [self.allgather([list(outs)], [x], opts) for outs, x in zip(outs_of_each, inputs, strict=True)]
        return self._several(works, outputs)

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Work:
        works = [self.all_gather_single(out, x, opts) for out, x in zip(outputs, inputs, strict=True)]
        return self._several(works, outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def reduce_scatter_single(self, output: Tensor, x: Tensor, opts: Any = None) -> Work:
        r = reduction(opts, self.size())
        verb = ReduceScatter(0, r.name)
        return self._meet(verb, r.before(flat(x)), lambda got: self._copy(output, r.scaled(got)), [output], opts)

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> Work:
        (output,), (pieces,) = outputs, inputs
        if len({piece.numel() for piece in pieces}) == 1:
            return self.reduce_scatter_single(output, _joined(pieces), opts)
        r, works = reduction(opts, self.size()), []
        for dst, piece in enumerate(pieces):  # pieces of several lengths: a sum for each
            write = (lambda got: self._copy(output, r.scaled(got))) if dst == self.rank() else _nothing
            works.append(self._meet(Reduce(dst, r.name), r.before(flat(piece)), write, output, opts))
        return self._several(works, outputs)

    def reduce_scatter_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Work:
        works = [self.reduce_scatter_single(out, x, opts) for out, x in zip(outputs, inputs, strict=True)]
        return self._several(works, outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def all_to_all_single(
        self, output: Tensor, x: Tensor, output_splits: list[int], input_splits: list[int], opts: Any = None
    ) -> Work:
        self._check_contiguous("all_to_all_single", x, output)
        parts = self.size()
        row, row_out = (t[0].numel() if t.ndim and len(t) else 1 for t in (x, output))
        sent = [n * row for n in input_splits] or [x.numel() // parts] * parts
        expected = [n * row_out for n in output_splits] or [output.numel() // parts] * parts
        for name, t, lengths in (("input", x, sent), ("output", output, expected)):
            if sum(lengths) != t.numel():
                raise ValueError(
                    f"rank {self.group.me}: all_to_all_single: its {name} of {t.numel()} elements is split into "
                    f"{lengths}. Let the splits add up to its rows, or without splits {parts} divide them"
                )
        return self._exchange(flat(x), sent, expected, lambda got: self._copy(output, got), [output], opts)

    alltoall_base = all_to_all_single

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Work:
        sent, expected = ([t.numel() for t in tensors] for tensors in (inputs, outputs))
        return self._exchange(_joined(inputs), sent, expected, lambda got: self._deal(outputs, got), outputs, opts)

    # ---- one device is special ----

    def broadcast(self, tensors: list[Tensor], opts: Any) -> Work:
        src = opts.rootRank
        write = lambda x: _nothing if src == self.rank() else lambda got: self._copy(x, got)  # noqa: E731
        works = [self._meet(Broadcast(src), self._dense(x), write(x), [x], opts) for x in tensors]
        return self._several(works, tensors)

    def reduce(self, tensors: list[Tensor], opts: Any) -> Work:
        r, (x,) = reduction(opts, self.size()), tensors
        write = lambda got: got is not None and self._copy(x, r.scaled(got))  # noqa: E731
        return self._meet(Reduce(opts.rootRank, r.name), r.before(self._dense(x)), write, tensors, opts)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any) -> Work:
        write = lambda got: got is not None and self._deal(outs, got)  # noqa: E731
        outs = outputs[0] if outputs else []
        return self._meet(KnownGather(opts.rootRank, 0), expecting(flat(inputs[0]), outs), write, outs, opts)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> Work:
        lengths = [piece.numel() for piece in inputs[0]] if inputs else []
        if len(set(lengths)) > 1:
            raise ValueError(
                f"rank {self.group.me} scatters pieces of {lengths} elements, and they must be equally long. Pad them, "
                "or send each one"
            )
        x = _joined(inputs[0]) if inputs else None
        write = lambda got: self._copy(outputs[0], got)  # noqa: E731
        return self._meet(rooted.Scatter(opts.rootRank, 0), x, write, outputs, opts)

    def barrier(self, opts: Any = None) -> Work:
        return self._meet(Barrier(), None, _nothing, [], opts)

    def monitored_barrier(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("monitored_barrier: call dist.barrier(). Here, who does not come is always named")

    # ---- messages ----

    def send(self, tensors: list[Tensor], dst: int, tag: int = 0) -> Work:
        self._check_thread("send")
        self._check_contiguous("send", *tensors)
        return self._messages.send(tensors[0], dst, tag)

    def recv(self, tensors: list[Tensor], src: int, tag: int = 0) -> Work:
        self._check_thread("recv")
        self._check_contiguous("recv", *tensors)
        return self._messages.recv(tensors[0], src, tag)

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> Work:
        raise NotImplementedError("recv from any source: chance decides who comes first. Name it: recv(x, src=...)")


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([flat(x) for x in tensors])


def _nothing(got: Any) -> None:
    """What comes is not needed."""
