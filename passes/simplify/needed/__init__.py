"""What no output reads is not computed: positions are picked before the layers that compute the rest."""
