"""The licences of the data sets, and what they say about sharing what was computed from their images."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Licence", "licence_of"]


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Terms of a data set: their ``name``, its identifier on the Hugging Face Hub (``hub``), and ``url``.

    ``sharing`` says what they mean for features of the images and for trained weights; it is no legal advice.
    """

    name: str
    hub: str
    url: str
    sharing: str


_FEATURES = "Feature maps, and the small pictures (rgb) of a cache, are made from the images."
_NC_SA = f"{_FEATURES} Share them for non-commercial use only, with attribution and under the same licence."

#: Data set -> its terms, as its own page states them.
_LICENCES: Mapping[str, Licence] = {
    "nuscenes": Licence(
        name="nuScenes terms of use (non-commercial)",
        hub="other",
        url="https://www.nuscenes.org/terms-of-use",
        sharing=f"{_FEATURES} The terms allow non-commercial use and restrict passing the data on; read them first.",
    ),
    "semantickitti": Licence(
        name="CC BY-NC-SA 3.0 (KITTI images), CC BY-NC-SA 4.0 (SemanticKITTI labels)",
        hub="cc-by-nc-sa-3.0",
        url="https://www.cvlibs.net/datasets/kitti/",
        sharing=_NC_SA,
    ),
    "a2d2": Licence(
        name="CC BY-ND 4.0",
        hub="cc-by-nd-4.0",
        url="https://creativecommons.org/licenses/by-nd/4.0/",
        sharing=f"{_FEATURES} This licence allows no adapted material to be shared, which features may well be; ask the"
        " owner of the data first.",
    ),
    "virtualkitti": Licence(
        name="CC BY-NC-SA 3.0",
        hub="cc-by-nc-sa-3.0",
        url="https://creativecommons.org/licenses/by-nc-sa/3.0/",
        sharing=_NC_SA,
    ),
    "semanticstf": Licence(
        name="terms of SemanticSTF, and those of STF (DENSE), whose images it uses",
        hub="other",
        url="https://github.com/xiaoaoran/SemanticSTF",
        sharing=f"{_FEATURES} Both sets of terms hold for them; read them first.",
    ),
    "synlidar": Licence(
        name="terms of SynLiDAR",
        hub="other",
        url="https://github.com/xiaoaoran/SynLiDAR",
        sharing="It has no images; its terms hold for weights that were trained on it.",
    ),
}
_UNKNOWN = Licence(
    name="terms of the data, which xd3d does not know",
    hub="other",
    url="",
    sharing=f"{_FEATURES} Whoever owns the data decides whether they may be shared.",
)


def licence_of(dataset: str) -> Licence:
    """Returns the terms of a data set; of one's own data, that they are not known."""
    return _LICENCES.get(dataset, _UNKNOWN)
