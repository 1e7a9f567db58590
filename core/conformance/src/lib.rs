//! The behaviour that every kdbus transport shows, case by case.
