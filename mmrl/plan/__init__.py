"""What a run needs of its machines: python -m mmrl.plan"""
