"""Records of topics, declarations of projects, and profiles as the stream stores them."""
