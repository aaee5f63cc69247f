import pytest
import torch

from eomt_d2.errors import UserError, exit_on_user_error


def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise UserError("INPUT.FORMAT is 'HSV'; it must be RGB or BGR.")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: INPUT.FORMAT is 'HSV'; it must be RGB or BGR.\n"


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ValueError, match="ours"), exit_on_user_error():
        raise ValueError("ours")


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError("truncated")
        except OSError as error:
            raise UserError("photo.jpg is damaged; replace it.") from error


def test_what_a_worker_of_a_loader_raised_loses_its_traceback(capsys):
    loader = torch.utils.data.DataLoader(Broken(), num_workers=1)
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        next(iter(loader))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: photo.jpg is damaged; replace it.\n"
