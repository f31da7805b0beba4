"""Tools for the compiled code of all packages.

jit           the decorators; machine_code keeps compiled code from one start to the next
intrinsics    processor instructions that plain numba cannot express
words         eight bytes at any position as one number, and their bits
frame         many arrays as one argument
varint, byte_ranges, crc, siphash    read, write and hash bytes
checksum      finds damage in the stored form of a profile
columns       reads and writes the columns of numbers in that form
"""
