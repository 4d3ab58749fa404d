"""Where vectors are kept between runs: what a cache must do, and the ones that ship."""
