"""The U-Net with its control branch, and the layers that it is made of."""
