"""Output that appears whole or not at all, whatever ends the command that writes it.

output_directory.py   a directory that takes its place by a rename, and checks of that place
whole_file.py         the same for one file
swap.py               the rename, and the deletion of what it replaces
work_folder.py        where unfinished work lies, and is found again
file_lock.py          locks that end with their process
"""
