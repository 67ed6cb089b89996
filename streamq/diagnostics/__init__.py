"""What streamq says about itself and about users' values, without being harmed by it: logging, and bounded texts."""
