"""Image-text models: what they must do, and what a logit of theirs depends on."""
