"""Graph networks: trained layer by layer without a global backward pass, and when to pre-train them."""
