"""Memory, FLOPs and traffic that a run needs: python -m mmrl.plan"""
