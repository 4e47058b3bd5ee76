"""Work that needs the cluster, one job a file or folder."""
