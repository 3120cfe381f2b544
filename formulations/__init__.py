"""The mathematics of token allocation, one module per statement, each native to its library; see README.md here."""
