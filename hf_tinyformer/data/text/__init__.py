"""Files and data sets become documents."""
