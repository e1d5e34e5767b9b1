"""Configuration of `brats-seg`; sources of the published values: arXiv 2201.01266 and its code (BRATS21)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from shared.config import Config, DataConfig, RunConfig, TrainConfig
from shared.nets.config import BackboneSource

Modality = Literal["flair", "t1ce", "t1", "t2"]
REGIONS = ("tc", "wt", "et")
"""Channel order of the network's output, as in the official code."""


class BratsDataConfig(DataConfig):
    layout: Literal["auto", "brats", "msd", "datalist", "patches"] = Field(
        "auto", description="how the files lie; auto detects and prints it"
    )
    labels: Literal["auto", "brats2021", "brats2023", "brats2024", "msd"] = Field(
        "auto", description="label convention; auto only where names and values leave no doubt"
    )
    modalities: tuple[Modality, ...] = Field(
        ("flair", "t1ce", "t1", "t2"), description="input channels, in the network's order"
    )
    orientation: Literal["RAS", "LPS"] = Field("RAS", description="voxel axes the network sees")
    spacing_mm: tuple[float, float, float] | None = Field(
        (1.0, 1.0, 1.0), description="voxel size the network sees, mm; null = each case's own"
    )
    folds: int = Field(5, ge=2, description="patient-wise folds")
    fold: int = Field(0, ge=0, description="fold held out for validation")
    exclude_patients: tuple[str, ...] = Field((), description="patients kept out of training and validation")
    synthetic_cases: int = Field(
        12,
        ge=2,
        description="heads made by the simulator: the whole data set when none is given, else beside patches",
    )
    real_fraction: float = Field(
        0.5, gt=0, le=1, description="patch sets: share of real patches among the training crops"
    )
    nan: Literal["fail", "zero"] = Field("fail", description="what to do with NaN or infinite voxels")
    cache: bool = Field(True, description="keep preprocessed training cases in memory")

    @field_validator("modalities")
    @classmethod
    def _each_once(cls, names: tuple[Modality, ...]) -> tuple[Modality, ...]:
        if not names or len(set(names)) != len(names):
            raise ValueError("one modality or more, each once")
        return names


class BratsModelConfig(Config):
    name: Literal["swin-unetr", "segresnet", "unet"] = Field(
        "swin-unetr", description="unet: Swin UNETR's decoder over `backbone`"
    )
    backbone: BackboneSource | None = Field(
        None, description="for unet: a name of `pipelines zoo --for brats-seg`, a YAML file or its keys"
    )
    feature_size: int = Field(48, ge=12, multiple_of=12, description="channels of the first stage")
    stages: int = Field(4, ge=2, le=4, description="Swin stages; 4 as published, fewer for small crops")
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = Field(7, ge=2, description="attention window, voxels of the feature map")
    norm: Literal["instance", "batch", "group"] = "instance"
    merging: Literal["merging", "legacy", "mergingv2"] = Field(
        "merging", description="legacy: the duplicated octants of MONAI before 1.5, for weights trained there"
    )
    use_v2: bool = False
    gradient_checkpointing: bool = False
    pretrained: Path | None = Field(
        None,
        description="weights to start from: a bundle, a .safetensors or .pt file, or builtin (the shipped model)",
    )


class BratsTrainConfig(TrainConfig):
    crop: tuple[int, int, int] = Field((128, 128, 128), description="training crop, voxels")
    crops_per_epoch: int = Field(0, ge=0, description="training crops per epoch; 0 = one per case")
    squared_dice: bool = Field(False, description="squared denominators, as the paper's formula")
    cross_entropy: float = Field(0.0, ge=0, description="weight of binary cross-entropy beside Dice")
    batch_dice: bool = Field(
        False, description="Dice over the whole batch: steadier where small crops lack a region"
    )
    tumour_crops: float = Field(
        0.0, ge=0, le=1, description="share of crops centred on a tumour voxel; 0 = uniform, as published"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability per axis")
    deform: float = Field(
        0.0, ge=0, le=1, description="probability of a small rotation and scaling; 0 as published"
    )
    degrade: float = Field(
        0.0, ge=0, le=1, description="probability each of noise, blur and gamma; 0 as published"
    )
    scale_intensity: float = Field(0.1, ge=0)
    shift_intensity: float = Field(0.1, ge=0)


class BratsPredictConfig(Config):
    ensemble: tuple[Path, ...] = Field(
        (), description="bundle folders whose logits are averaged with the model's"
    )
    window: tuple[int, int, int] = Field((128, 128, 128), description="sliding window, voxels")
    overlap: float = Field(0.5, ge=0, lt=1)
    blend: Literal["gaussian", "constant"] = "gaussian"
    tta: Literal["none", "flip8"] = "none"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: the precision the bundle's card says was measured safe on this device"
    )
    threshold: float = Field(0.5, gt=0, lt=1)
    et_min_voxels: int = Field(0, ge=0, description="case-wide ET below this becomes necrosis (nnU-Net rule)")
    drop_coreless_components: bool = Field(
        False, description="drop whole-tumour components with under 1 % core where another has more"
    )
    min_component_voxels: int = Field(0, ge=0, description="drop whole-tumour components below this")
    labels: Literal["auto", "brats2021", "brats2023", "brats2024", "msd"] = Field(
        "auto", description="output convention; auto = the input's own, else brats2021"
    )
    save_probabilities: bool = False
    picture: bool = True
    nan: Literal["auto", "fail", "zero"] = Field(
        "auto", description="what to do with NaN or infinite voxels; auto = as in training (data.nan)"
    )
    allow_missing: bool = Field(False, description="fill a missing modality with zeros, with a warning")
    max_bytes: int = Field(8 * 2**30, ge=1, description="largest volume accepted, bytes after decoding")


class BratsConfig(RunConfig):
    data: BratsDataConfig = BratsDataConfig()
    model: BratsModelConfig = BratsModelConfig()
    train: BratsTrainConfig = BratsTrainConfig()
    predict: BratsPredictConfig = BratsPredictConfig()
