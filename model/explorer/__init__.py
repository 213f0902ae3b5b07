"""The clustering explorer: a page in the browser where images are clustered as settings change."""
