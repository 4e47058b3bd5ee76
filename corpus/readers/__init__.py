"""One file a published format; each streams `Record`s and `Rejection`s. `corpus.readers.formats` finds the right one."""

# In the order in which a file is tried: formats with a layout of their own before those that only have a file type.
FORMATS = {
    name: f"corpus.readers.{name.replace('-', '_')}"
    for name in (
        "records",
        "unimedvl-jsonl",
        "slake",
        "vqa-rad",
        "omni-med-vqa",
        "gmai-mmbench",
        "med-mnist",
        "path-vqa",
        "unimed-5m",
        "nifti",
        "dicom",
        "image-folder",
    )
}
