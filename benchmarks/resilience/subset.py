"""A subset of a data set: a yaml with lists of images; no files are copied."""

from pathlib import Path

import yaml


def write_subset(data: str, folder: Path, images: int) -> Path:
    """Write the yaml of the first `images` training images and a quarter as many for validation; return its path."""
    from pipelines.data.dataset import load_dataset
    from pipelines.data.listing import list_images

    dataset = load_dataset(data)
    content: dict[str, object] = {"path": str(folder.resolve()), "names": list(dataset.class_names)}
    for split, count in (("train", images), ("val", max(images // 4, 1))):
        images_of = list_images(dataset.split("train" if split == "train" else "val"), dataset.class_names).images
        lines = "".join(f"{Path(image).resolve()}\n" for image in images_of[:count])
        (folder / f"{split}.txt").write_text(lines, encoding="utf-8")
        content[split] = f"{split}.txt"
    path = folder / "subset.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
