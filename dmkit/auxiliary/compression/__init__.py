"""Networks in fewer bits: signatures of robustness that are small files, and binary weights."""
