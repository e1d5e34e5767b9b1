"""The parts of a made head: `anatomy`, `lesions`, `contrast`, `scanner`; `medical.brats_seg.sample` joins them."""
