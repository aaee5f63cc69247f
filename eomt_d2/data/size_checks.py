"""Do an image, its ground truth and what the annotation file says have one size?"""

from eomt_d2.errors import UserError

__all__ = ["check_listed_size", "check_same_size"]


def check_listed_size(dataset_dict: dict, height: int, width: int) -> None:
    """Whether the image (``height``, ``width``, in pixels) is as large as its entry says, if it
    does.

    Raises:
        UserError: it is not.
    """
    listed = dataset_dict.get("height", height), dataset_dict.get("width", width)
    if listed != (height, width):
        raise UserError(
            f"Image file {dataset_dict['file_name']} has {width}x{height} pixels, but its "
            f"annotation file says {listed[1]}x{listed[0]}; correct one of them."
        )


def check_same_size(
    image_file: str, image_size: tuple[int, int], truth_file: str, truth_size: tuple[int, int]
) -> None:
    """Whether image and ground truth are of one size, (height, width) in pixels.

    Raises:
        UserError: they are not.
    """
    if image_size != truth_size:
        raise UserError(
            f"Image file {image_file} has {image_size[1]}x{image_size[0]} pixels, but its ground "
            f"truth {truth_file} has {truth_size[1]}x{truth_size[0]}; correct one of them."
        )
