"""Write a synthetic data set in the layout of ICBHI 2017."""
