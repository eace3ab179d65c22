"""mobile: graphs for NNAPI, Core ML, XNNPACK and browsers, and the bundle around them."""
