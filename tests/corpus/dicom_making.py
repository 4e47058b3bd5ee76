"""DICOM files made for a test: a picture with whatever elements the test is about."""

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def dataset(values: np.ndarray, **elements) -> Dataset:
    """A CT image of the stored values (H, W), (frames, H, W) or (H, W, 3), with elements by keyword on top."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[str(values.tobytes()), str(elements)])
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID, made.Modality = "1.2.3", "1.2.3.4", "P1", "CT"
    colour = values.ndim == 3 and values.shape[2] == 3
    made.Rows, made.Columns = values.shape[:2] if colour else values.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        made.PlanarConfiguration = 0
    elif values.ndim == 3:
        made.NumberOfFrames = len(values)
    made.BitsAllocated = made.BitsStored = values.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(values.dtype.kind == "i")
    if values.dtype.kind == "f":
        made.FloatPixelData = values.tobytes()
    else:
        made.PixelData = values.tobytes()
        made["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def save(made: Dataset, path: Path) -> Path:
    """The dataset as a file."""
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    made.save_as(path, enforce_file_format=True)
    return path
