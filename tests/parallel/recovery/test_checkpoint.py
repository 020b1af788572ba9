"""Checkpoints: whatever happens while one is written or lies on the disk, what is loaded is right, or it is refused."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from lib.devices import Cluster
from lib.parallel.recovery import checkpoint, saving
from lib.parallel.recovery.blocks import Held
from lib.parallel.recovery.killed import Killed, killed_at
from lib.parallel.recovery.lock import alone_in


def held(group, value):
    """Two tensors: one cut by rows, one that all have."""
    mine = torch.full((4 // group.size, 2), float(value))
    rows = tuple(range(group.rank * len(mine), (group.rank + 1) * len(mine)))
    return [Held("cut", mine, (4, 2), (rows, (0, 1))), Held("same", torch.tensor([float(value)]), (1,), ((0,),))]


def save(group, folder, step):
    return saving.save(folder, step, held(group, step), {"step": step}, group)


def restore(group, folder):
    place, wrong = checkpoint.newest(folder, group)
    mine = held(group, -1)
    if place is not None:
        checkpoint.load(place, mine)
    return checkpoint.manifest_of(place)["step"] if place else None, mine[0].x[0, 0].item(), mine[1].x.item(), wrong


@pytest.fixture
def folder(tmp_path):
    Cluster(2).run(save, tmp_path, 1)
    return tmp_path


def test_a_training_killed_at_any_touch_of_the_disk_loses_one_checkpoint_at_most(folder, tmp_path_factory):
    for touches in range(100):
        copy = tmp_path_factory.mktemp("copy") / "c"
        shutil.copytree(folder, copy)
        try:
            with killed_at(copy, touches):
                Cluster(2).run(save, copy, 2)
            survived = True
        except Killed:
            survived = False
        step, cut, same, wrong = Cluster(4).run(restore, copy)[0]
        assert wrong == []
        assert step in (1, 2)
        assert step == 2 or not survived
        assert cut == same == step
        # Whoever goes on writes the checkpoint anew, over what the killed one left.
        Cluster(1).run(save, copy, 2)
        assert Cluster(2).run(restore, copy)[1][:3] == (2, 2.0, 2.0)
        assert not list(copy.rglob("*.part"))
        if survived:
            break
    assert survived
    assert touches > 8


def test_only_the_last_ones_stay_and_what_was_begun_goes(folder):
    (folder / "step-000002").mkdir()
    for step in (3, 4):
        Cluster(2).run(save, folder, step)
    assert sorted(place.name for place in folder.iterdir()) == ["step-000003", "step-000004"]


def test_step_1_000_000_is_newer_than_step_999_999(tmp_path):
    for step in (999_998, 999_999, 1_000_000):
        Cluster(2).run(save, tmp_path, step)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    assert Cluster(2).run(restore, tmp_path)[0][0] == 1_000_000


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda place: (place / "rank-1.safetensors").unlink(), "rank-1.safetensors cannot be read: No such file"),
        (lambda place: truncate(place / "rank-0.safetensors"), "rank-0.safetensors has .* bytes .* cut short"),
        (lambda place: flip(place / "rank-1.safetensors"), "rank-1.safetensors is not what was written: its checksum"),
        (lambda place: shutil.copy(place.with_name("step-000001") / "rank-0.safetensors", place), "checksum differs"),
        (lambda place: (place / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda place: (place / "manifest.json").write_text('{"format": 0}'), "of format 0, and this reads format 1"),
    ],
    ids=["missing", "truncated", "bit", "mixed", "manifest", "older"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_taken(folder, damage, said):
    Cluster(2).run(save, folder, 2)
    damage(folder / "step-000002")
    for results in (Cluster(1).run(restore, folder), Cluster(4).run(restore, folder)):
        for step, cut, same, wrong in results:
            assert (step, cut, same) == (1, 1.0, 1.0)
            assert len(wrong) == 1
            assert wrong[0].startswith("step-000002: ")
            assert re.search(said, wrong[0])


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_full_disk_is_told_on_all_devices_and_the_training_may_go_on(folder, monkeypatch):
    whole = saving.write_whole

    def full(file, data):
        if file.name == "rank-1.safetensors":
            raise OSError(28, "No space left on device", str(file))
        whole(file, data)

    def program(group):
        try:
            save(group, folder, 2)
        except OSError as error:
            return str(error)

    monkeypatch.setattr(saving, "write_whole", full)
    for said in Cluster(2).run(program):
        assert said.startswith("checkpoint of step 2: rank 1: No space left on device: ")
        assert said.endswith("The checkpoints before it are as they were")
    assert Cluster(2).run(restore, folder)[0][:3] == (1, 1.0, 1.0)
    monkeypatch.undo()
    Cluster(2).run(save, folder, 3)
    assert Cluster(2).run(restore, folder)[0][:3] == (3, 3.0, 3.0)


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(OSError, match="checkpoint of step 1: rank 0: .*; rank 1: "):
        Cluster(2).run(save, tmp_path / "c", 1)
    assert (tmp_path / "c").read_text() == "mine"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Held("unknown", torch.zeros(1), (1,), ((0,),)), "has no unknown: it is of another model"),
        (Held("same", torch.zeros(2), (2,), ((0, 1),)), r"same is float32 \(1,\) there, and float32 \(2,\) here"),
        (Held("same", torch.zeros(1).double(), (1,), ((0,),)), r"float32 \(1,\) there, and float64 \(1,\) here"),
    ],
)
def test_another_models_checkpoint_changes_nothing(folder, other, said):
    mine = Held("cut", torch.full((4, 2), 7.0), (4, 2), ((0, 1, 2, 3), (0, 1)))
    with pytest.raises(ValueError, match=said):
        checkpoint.load(checkpoint.complete(folder)[0], [mine, other])
    assert (mine.x == 7).all()


def test_a_block_that_is_in_no_file_is_named(folder):
    place = checkpoint.complete(folder)[0]
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["tensors"]["cut"]["blocks"].pop()
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"of cut \(4, 2\), a part of Block\(start=\(0, 0\), shape=\(4, 2\)\) is in none"
    ):
        checkpoint.load(place, [Held("cut", torch.zeros(4, 2), (4, 2), ((0, 1, 2, 3), (0, 1)))])


def test_it_can_be_read_without_this_book(folder):
    """The format in six lines, with safetensors and JSON alone."""
    place = folder / "step-000001"
    manifest = json.loads((place / "manifest.json").read_text())
    tensors = {}
    for name, tensor in manifest["tensors"].items():
        tensors[name] = torch.empty(tensor["shape"], dtype=getattr(torch, tensor["dtype"]))
        for block in tensor["blocks"]:
            where = tuple(slice(a, a + n) for a, n in zip(block["start"], block["shape"], strict=True))
            tensors[name][where] = load_file(place / block["file"])[block["key"]]
    assert torch.equal(tensors["cut"], torch.ones(4, 2))
    assert torch.equal(tensors["same"], torch.ones(1))
    assert sum(len(tensor["blocks"]) for tensor in manifest["tensors"].values()) == 3  # what both have, once


def test_what_the_training_does_meanwhile_is_not_in_the_checkpoint(tmp_path):
    """Saving behind: the copy is that of the moment when it was begun."""

    def program(group):
        mine = held(group, 5)
        behind = saving.Saving(tmp_path, 5, mine, {}, group)
        behind.start()
        for one in mine:
            one.x.zero_()
        behind.finish()

    Cluster(2).run(program)
    assert Cluster(1).run(restore, tmp_path) == [(5, 5.0, 5.0, [])]


def test_an_unfinished_one_is_no_checkpoint(folder):
    Cluster(2).run(lambda group: saving.Saving(folder, 2, held(group, 2), {}, group).write())
    assert Cluster(1).run(restore, folder)[0][:3] == (1, 1.0, 1.0)


def test_two_trainings_do_not_write_into_one_folder(tmp_path):
    def program(group):
        with alone_in(tmp_path / "c", group):
            try:
                with alone_in(tmp_path / "c", group):
                    return "both"
            except OSError as error:
                return str(error)

    for said in Cluster(2).run(program):
        assert re.fullmatch("another training writes to .*c at the moment. Wait for it, or name another folder", said)
    for _ in range(2):  # the lock is gone with the training that had it
        with_lock = Cluster(2).run(lambda group: alone_in(tmp_path / "c", group).__enter__())
        assert with_lock == [None, None]
