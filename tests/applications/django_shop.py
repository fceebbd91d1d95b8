"""As shop.rb, with Django."""
import os
import sys
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings

at = urlsplit(os.environ["DATABASE_URL"])
settings.configure(INSTALLED_APPS=[], USE_TZ=False, DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "HOST": at.hostname, "PORT": at.port, "USER": at.username,
    "NAME": at.path[1:], "OPTIONS": {"options": unquote(at.query.partition("=")[2])}}})
django.setup()

import ksync
from django.db import connection, models, transaction


class Product(models.Model):
    __ksync_topic__ = os.environ["TOPIC"]
    id, price = models.IntegerField(primary_key=True), models.IntegerField()
    updated_at = models.DateTimeField(null=True, auto_now=True)
    objects = ksync.QuerySet.as_manager()

    class Meta:
        app_label, db_table = "shop", "products"


ksync.announce(Product)


def save(id, price):
    product = Product.objects.get(id=id)
    product.price = price
    product.save()


def perform(command, id, price=None, *more):
    if command == "create":
        Product.objects.create(id=id, price=price)
    elif command == "update":
        save(id, price)
    elif command == "save":
        Product.objects.get(id=id).save()
    elif command == "touch":
        Product.objects.get(id=id).save(update_fields=["updated_at"])
    elif command == "destroy":
        Product.objects.get(id=id).delete()
    elif command == "twice":
        with transaction.atomic():
            for price in range(2):
                save(id, price)
    elif command == "both":
        with transaction.atomic():
            for each in id, price:
                save(each, 3)
    elif command == "long":  # the client takes a delay message for old after a second of these
        ksync.FRESH_SECS = 1
        with transaction.atomic(), connection.cursor() as cursor:
            save(id, price)
            cursor.execute("SELECT pg_sleep(%s)", more)
    elif command == "rollback":
        with transaction.atomic():
            save(id, price)
            transaction.set_rollback(True)
    elif command == "bulk":
        Product.objects.filter(id__in=[id, price, *more]).order_by("id").update(price=7)


if __name__ == "__main__":
    print("ready", file=sys.stderr, flush=True)
    for line in map(str.rstrip, sys.stdin):
        command, *numbers = line.split()
        try:
            perform(command, *map(int, numbers))
            print(f"did {line}", file=sys.stderr, flush=True)
        except Exception as error:
            print(f"failed {line}: {error}", file=sys.stderr, flush=True)
