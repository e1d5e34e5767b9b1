from shared.compat import mend_torchvision

mend_torchvision()  # before anything of ours imports torchmetrics, Lightning or timm
