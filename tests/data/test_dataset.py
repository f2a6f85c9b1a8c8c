import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dmkit.data import DecodedPixels, ImageDataset
from dmkit.images import to_uint8

PIXELS = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def read(index: int) -> torch.Tensor:
    return PIXELS[index]


def dataset(pixels=PIXELS, **changes) -> ImageDataset:
    arguments = {
        "name": "x",
        "split": "train",
        "channels": 3,
        "resolution": 4,
        "labels": torch.arange(7),
        "captions": [f"picture {k}" for k in range(7)],
    }
    return ImageDataset(pixels, **{**arguments, **changes})


STORES = {"memory": PIXELS, "decoded": DecodedPixels(read, len(PIXELS))}


@pytest.mark.parametrize("store", STORES)
def test_items_are_what_was_stored(store):
    data = dataset(STORES[store])
    item = data[3]
    assert item["images"].dtype == torch.float32
    assert (item["labels"], item["captions"]) == (3, "picture 3")
    assert item["images"].max() <= 1
    assert item["images"].min() >= -1
    assert torch.allclose(item["images"].double(), PIXELS[3].double() / 127.5 - 1, rtol=0, atol=1e-7)
    assert torch.equal(to_uint8(item["images"]), PIXELS[3])
    assert torch.equal(data[-1]["images"], data[6]["images"])
    with pytest.raises(IndexError):
        data[7]
    assert "labels" not in dataset(labels=None)[0]


@given(indices=st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_batched_reading_selecting_and_single_items_agree(indices):
    for pixels in STORES.values():
        data = dataset(pixels)
        chosen = data.select(indices)
        assert len(chosen) == len(indices)
        again = [chosen[k] for k in range(len(indices))]
        one_by_one = [data[k] for k in indices]
        for batched, single, selected in zip(data.__getitems__(indices), one_by_one, again, strict=True):
            assert batched.keys() == single.keys() == selected.keys()
            for key in single:
                same = torch.equal if key == "images" else lambda a, b: a == b
                assert same(batched[key], single[key])
                assert same(selected[key], single[key])


@pytest.mark.parametrize("store", STORES)
def test_raw_access(store):
    data = dataset(STORES[store])
    assert torch.equal(data.images_uint8(), PIXELS)
    assert torch.equal(data.images_uint8([5, 0]), PIXELS[[5, 0]])
    assert torch.equal(torch.cat(list(data.batches_uint8(3))), PIXELS)
    assert [len(batch) for batch in data.batches_uint8(3)] == [3, 3, 1]
    assert data.fingerprint() == dataset().fingerprint()


def test_memory_is_not_copied():
    assert dataset().images_uint8().data_ptr() == PIXELS.data_ptr()


def test_fingerprint_sees_a_changed_pixel_and_a_changed_size():
    changed = PIXELS.clone()
    changed[6, 2, 3, 3] ^= 1
    prints = {dataset().fingerprint(), dataset(changed).fingerprint()}
    assert len(prints | {dataset().select(range(6)).fingerprint()}) == 3


def test_default_collation_and_workers():
    for workers in (0, 1):
        batch = next(iter(DataLoader(dataset(STORES["decoded"]), batch_size=4, num_workers=workers)))
        assert batch["images"].shape == (4, 3, 4, 4)
        assert batch["labels"].tolist() == [0, 1, 2, 3]
        assert batch["captions"] == [f"picture {k}" for k in range(4)]


def test_a_selection_can_be_sent_to_another_process():
    again = pickle.loads(pickle.dumps(dataset(STORES["decoded"]).select([4, 2])))
    assert torch.equal(again.images_uint8(), PIXELS[[4, 2]])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="6 labels for 7 images"):
        dataset(labels=torch.arange(6))
    with pytest.raises(ValueError, match="1 captions for 7 images"):
        dataset(captions=["a"])
    with pytest.raises(ValueError, match=r"expected uint8 \(7, 1, 4, 4\), not torch.uint8 \(7, 3, 4, 4\)"):
        dataset(channels=1)
    with pytest.raises(ValueError, match=r"not torch.float32"):
        dataset(PIXELS.float())
