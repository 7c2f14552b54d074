"""How good pictures are: metrics, scores, comparisons, calibration."""
