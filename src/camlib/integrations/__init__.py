"""camlib inside other libraries; each module needs one of them."""
