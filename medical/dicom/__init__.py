"""DICOM studies as input for prediction: `read_study` and what finds a study among files."""

from medical.dicom.slices import looks_like_dicom
from medical.dicom.study import StudyKey, read_study, study_key

__all__ = ["StudyKey", "looks_like_dicom", "read_study", "study_key"]
