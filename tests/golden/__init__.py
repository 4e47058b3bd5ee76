"""Reference numbers the network must reproduce, and the check of any folder of that form."""
