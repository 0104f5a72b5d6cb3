"""From the fused graph to code: lowering to loop IR, and one folder per target."""
