from eomt_d2.benchmark.variants import compare_costs, load_finished_model

CONFIG = "configs/shapes/panoptic/eomt_tiny.yaml"


def test_costs_of_variants_are_laid_beside_the_plain_network(tmp_path, restored_loggers, catalogs):
    _, model = load_finished_model(CONFIG, ["OUTPUT_DIR", str(tmp_path)], with_weights=False)
    assert not model.training
    assert model.mask_annealing.active == (False, False)
    predict = model.predict

    def twice(images):
        predict(images)
        return predict(images)

    def doubled_masks(images):
        (prediction,) = predict(images)
        return [prediction._replace(mask_logits=2 * prediction.mask_logits)]

    variants = {"twice": twice, "doubled": doubled_masks}
    header, _, *rows = compare_costs(model, variants, repeats=1).splitlines()
    assert header.count("|") == 6
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["plain", "twice", "doubled"]
    # 0.1435 GMAC, twice that, and the same.
    assert [row[1] for row in cells] == ["0.1", "0.3", "0.1"]
    # Of the largest plain logit.
    assert [row[4] for row in cells] == ["0", "0", "1"]
    assert cells[0][3] == "1.00"
