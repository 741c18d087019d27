//! Avocado-VT's Cartesian configuration language: text in, variants out.
