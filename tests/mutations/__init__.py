"""One committed defect for each blocking gate, and the stage that must notice it."""
