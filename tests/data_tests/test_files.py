"""Clips of files: which example shows what, and what happens to files that cannot be used."""

import errno
import logging
import pickle

import numpy as np
import pytest
from scipy.stats import chisquare

from ssmvdm.data.files import FileSource, VideoFile
from tests.data_tests import made

FRAMES, WINDOW = 10, 4


@pytest.fixture
def videos(tmp_path):
    """Twelve files of ten frames."""
    files = []
    for number in range(12):
        path = tmp_path / f"{number}.npy"
        np.save(path, made.numbered(number, FRAMES))
        files.append(VideoFile(path, captions=(f"first {number}", f"second {number}")))
    return tuple(files)


def source_of(videos, **options):
    return FileSource(videos[:8], videos[8:], WINDOW, 8, **options)


def shown(clip):
    return made.numbers_in(clip.video)


def test_a_clip_is_a_run_of_frames_of_one_file(videos):
    source = source_of(videos)
    for example in range(40):
        clip = source.training_clip(0, example)
        assert clip.video.shape == (3, WINDOW, 8, 8)
        assert clip.video.dtype == np.float32
        number, frames = shown(clip)
        assert number < 8
        assert frames == list(range(frames[0], frames[0] + WINDOW))
        assert clip.caption in videos[number].captions


def test_every_file_is_shown_once_before_any_is_shown_again(videos):
    source = source_of(videos)
    rounds = [[shown(source.training_clip(5, 8 * turn + i))[0] for i in range(8)] for turn in range(6)]
    assert all(sorted(order) == list(range(8)) for order in rounds)
    assert len({tuple(order) for order in rounds}) == 6


def test_windows_are_uniform_over_all_that_fit(videos):
    source = FileSource(videos[:1], (), WINDOW, 8)
    starts = [shown(source.training_clip(0, example))[1][0] for example in range(2000)]
    counts = np.bincount(starts, minlength=FRAMES - WINDOW + 1)
    assert len(counts) == FRAMES - WINDOW + 1
    assert chisquare(counts).pvalue > 1e-3
    captions = [source.training_clip(0, example).caption for example in range(200)]
    assert 60 < captions.count("first 0") < 140  # a fair coin leaves this range once in 10^8


def test_an_example_depends_on_seed_and_number_alone(videos):
    """Any order, another process, and after other examples: as a resumed or a distributed run asks for them."""
    plain = [source_of(videos).training_clip(3, example) for example in range(20)]
    source = pickle.loads(pickle.dumps(source_of(videos)))  # how a worker process gets it
    for example in (19, 4, 11, 4, 0):
        clip = source.training_clip(3, example)
        assert np.array_equal(clip.video, plain[example].video)
        assert clip.caption == plain[example].caption
    other = [source_of(videos).training_clip(4, example) for example in range(20)]
    assert [shown(clip) for clip in other] != [shown(clip) for clip in plain]


def test_held_out_clips_come_once_each_in_order_and_stay_the_same(videos):
    source = source_of(videos)
    clips = list(source.held_out_clips())
    assert [shown(clip)[0] for clip in clips] == [8, 9, 10, 11]
    again = list(source.held_out_clips())
    assert all(np.array_equal(a.video, b.video) for a, b in zip(clips, again, strict=True))


def test_a_bad_file_is_replaced_told_once_and_counted(videos, caplog):
    bad = videos[2].path
    plain = [source_of(videos).training_clip(0, example) for example in range(64)]
    bad.write_bytes(b"broken")
    source = source_of(videos)
    with caplog.at_level(logging.WARNING, logger="ssmvdm.data"):
        clips = [source.training_clip(0, example) for example in range(64)]
    assert source.unusable.keys() == {videos[2]}
    assert len(caplog.messages) == 1
    assert str(bad) in caplog.messages[0]
    substitutes = 0
    for clip, before in zip(clips, plain, strict=True):
        if shown(before)[0] == 2:
            substitutes += 1
            assert shown(clip)[0] != 2
        else:
            assert np.array_equal(clip.video, before.video)
    assert substitutes == 8


def test_what_stands_in_for_a_bad_file_does_not_depend_on_what_was_seen_before(videos):
    for number in (1, 5):
        videos[number].path.write_bytes(b"broken")
    source = source_of(videos, max_unusable=0.5)
    in_order = [source.training_clip(0, example) for example in range(32)]
    for example in range(31, -1, -1):
        fresh = source_of(videos, max_unusable=0.5).training_clip(0, example)
        assert np.array_equal(fresh.video, in_order[example].video)


def test_a_bad_held_out_file_is_passed_over(videos):
    videos[9].path.write_bytes(b"")
    source = source_of(videos)
    assert [shown(clip)[0] for clip in source.held_out_clips()] == [8, 10, 11]
    assert source.unusable.keys() == {videos[9]}


@pytest.mark.parametrize("bad", [1, 2])
def test_more_bad_files_than_allowed_stop_the_run(videos, bad):
    """One of twelve is 8 %, two are 17 %, and 10 % are allowed."""
    for number in range(bad):
        videos[number].path.unlink()
    source = source_of(videos)
    if bad == 1:
        for example in range(16):
            source.training_clip(0, example)
        return
    with pytest.raises(ValueError, match=r"2 of the 12 videos cannot be used.*0\.1.*No such file"):
        for example in range(16):
            source.training_clip(0, example)


def test_no_usable_file_at_all_is_an_error_whatever_is_allowed(videos):
    for video in videos:
        video.path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of the 8 training videos can be used"):
        source_of(videos, max_unusable=1.0).training_clip(0, 0)


def test_short_videos_and_wrong_shapes_count_as_unusable(videos):
    np.save(videos[0].path, made.numbered(0, WINDOW - 1))
    np.save(videos[1].path, made.numbered(1, FRAMES, height=9))
    source = source_of(videos, max_unusable=0.5, edge=8)
    for example in range(8):
        source.training_clip(0, example)
    assert source.unusable[videos[0]] == "has 3 frames, 4 are needed"
    assert source.unusable[videos[1]] == "its frames are 9 x 8, expected 8 x 8"


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files", "0.npy")], ids=repr)
def test_what_the_machine_runs_out_of_is_not_the_files_fault(videos, monkeypatch, error):
    def exhausted(*_, **__):
        raise error

    monkeypatch.setattr("ssmvdm.data.videos.np.load", exhausted)
    source = source_of(videos)
    with pytest.raises(type(error)) as met:
        source.training_clip(0, 0)
    assert met.value is error
    assert not source.unusable
