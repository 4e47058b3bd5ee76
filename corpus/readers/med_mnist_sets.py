"""The eighteen sets of MedMNIST v2 and v3: class names, counts, licence and modality, as the `medmnist` package 3.0.2 states them."""

from typing import NamedTuple


class Set(NamedTuple):
    """`counts` are the published numbers of train, val and test images, one tuple an edition; `topic` says what a label is."""

    title: str
    modality: str | None
    topic: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, int, int], ...]
    license: str = "CC-BY-4.0"
    many: bool = False


_ORGANS = ("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right", "pancreas", "spleen")
_ORGANS_3D = ("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right", "lung-left", "spleen", "pancreas")
_FINDINGS = (
    *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia"),
    *("pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
)
_TISSUES = (
    *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle"),
    *("normal colon mucosa", "cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
)
_LESIONS = (
    *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions"),
    *("dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"),
)
_CELLS = (
    *("basophil", "eosinophil", "erythroblast", "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"),
    *("lymphocyte", "monocyte", "neutrophil", "platelet"),
)
_KIDNEY = (
    *("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells", "Interstitial endothelial cells"),
    *("Leukocytes", "Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb"),
)
_RETINA = ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")
_RIBS = ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture")

SETS = {
    "pathmnist": Set("PathMNIST", "Histopathology", "tissue", _TISSUES, ((89996, 10004, 7180),)),
    "chestmnist": Set("ChestMNIST", "CXR", "findings", _FINDINGS, ((78468, 11219, 22433),), many=True),
    "dermamnist": Set("DermaMNIST", "Dermoscopy", "lesion", _LESIONS, ((7007, 1003, 2005),), "CC-BY-NC-4.0"),
    "octmnist": Set("OCTMNIST", "OCT", "diagnosis", _RETINA, ((97477, 10832, 1000),)),
    "pneumoniamnist": Set("PneumoniaMNIST", "CXR", "diagnosis", ("normal", "pneumonia"), ((4708, 524, 624),)),
    "retinamnist": Set("RetinaMNIST", "CFP", "diabetic retinopathy grade", ("0", "1", "2", "3", "4"), ((1080, 120, 400),)),
    "breastmnist": Set("BreastMNIST", "Ultrasound", "diagnosis", ("malignant", "normal, benign"), ((546, 78, 156),)),
    "bloodmnist": Set("BloodMNIST", "Microscopy", "blood cell type", _CELLS, ((11959, 1712, 3421),)),
    "tissuemnist": Set("TissueMNIST", "Microscopy", "kidney cortex cell type", _KIDNEY, ((165466, 23640, 47280),)),
    "organamnist": Set("OrganAMNIST", "CT", "organ", _ORGANS, ((34561, 6491, 17778), (34581, 6491, 17778))),
    "organcmnist": Set("OrganCMNIST", "CT", "organ", _ORGANS, ((12975, 2392, 8216), (13000, 2392, 8268))),
    "organsmnist": Set("OrganSMNIST", "CT", "organ", _ORGANS, ((13932, 2452, 8827), (13940, 2452, 8829))),
    "organmnist3d": Set("OrganMNIST3D", "CT", "organ", _ORGANS_3D, ((971, 161, 610), (972, 161, 610))),
    "nodulemnist3d": Set("NoduleMNIST3D", "CT", "diagnosis", ("benign", "malignant"), ((1158, 165, 310),)),
    "fracturemnist3d": Set("FractureMNIST3D", "CT", "fracture type", _RIBS, ((1027, 103, 240),)),
    # Shapes made from masks and meshes: no scanner's picture, so no modality.
    "adrenalmnist3d": Set("AdrenalMNIST3D", None, "diagnosis", ("normal", "hyperplasia"), ((1188, 98, 298),)),
    "vesselmnist3d": Set("VesselMNIST3D", None, "diagnosis", ("vessel", "aneurysm"), ((1335, 191, 382), (1335, 192, 382))),
    "synapsemnist3d": Set("SynapseMNIST3D", "Microscopy", "synapse type", ("inhibitory synapse", "excitatory synapse"), ((1230, 177, 352),)),
}
